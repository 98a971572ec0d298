from pathlib import Path
from typing import Any

from tests.markdown import code_blocks
from tests.offline import enter, make_world

GUIDE = Path(__file__).parents[2] / "docs" / "renderers.md"


def test_the_guide_s_code_runs_from_top_to_bottom(tmp_path, monkeypatch):
    make_world(tmp_path / "world")
    (tmp_path / "work").mkdir()
    enter(tmp_path / "world", tmp_path / "work", monkeypatch)
    blocks = [block for block in code_blocks(GUIDE) if block.info == "python"]
    namespace: dict[str, Any] = {}
    for block in blocks:
        script = "\n" * (block.line - 1) + block.code  # so that an error names the guide's own line
        exec(compile(script, str(GUIDE), "exec"), namespace)
    assert len(blocks) >= 5
    text, spans = namespace["lines"].render(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], [1]
    )
    assert text[slice(*spans[0])] == "b\n"
