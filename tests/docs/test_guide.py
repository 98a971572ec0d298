"""Every code block of the user's guide runs, in the order of its document, in one folder a document.

``bash``: commands that start with ``python``, or ``cd``. ``python``: run in one namespace a document. ``jsonl`` and
``json``, with a file's name after it: written to that file; each line must be JSON. ``text`` is no code.
"""

import json
import os
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from tests import offline
from tests.markdown import Block, code_blocks

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = [path for path in sorted(DOCS.glob("*.md")) if path.stem != "architecture"]


class Reader:
    """Somebody who follows one document from its top."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch = monkeypatch
        module = types.ModuleType("guide")  # where the classes that a document defines are looked up
        monkeypatch.setitem(sys.modules, module.__name__, module)
        self.names = module.__dict__

    def follow(self, block: Block) -> None:
        language, _, file = block.info.partition(" ")
        match language:
            case "bash":
                for line in re.sub(r"\\\n\s*", "", block.code).splitlines():
                    self._shell(line)
            case "python":
                exec(compile(block.code, f"{block.name}, line {block.line}", "exec"), self.names)
            case "json" | "jsonl":
                for line in block.code.splitlines() if language == "jsonl" else [block.code]:
                    json.loads(line)
                if file:
                    Path(file).write_text(block.code)
            case "text":
                pass
            case _:
                raise AssertionError(f"{block.name}: a block of {block.info!r}, which nobody runs")

    def _shell(self, line: str) -> None:
        for command in line.partition("  #")[0].split(" && "):
            words = shlex.split(command)
            if words[0] == "cd":
                self.monkeypatch.chdir(words[1])
                self.monkeypatch.syspath_prepend(os.getcwd())
            else:
                assert offline.run_python(command, self.monkeypatch) == 0, command


@pytest.mark.parametrize("document", GUIDE, ids=[path.stem for path in GUIDE])
def test_the_blocks_of_a_document_run_one_after_the_other(document, offline_world, tmp_path, monkeypatch):
    offline.enter(offline_world, tmp_path, monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    offline.write_conversations(tmp_path / "my.jsonl", 40)
    reader = Reader(monkeypatch)
    for block in code_blocks(document):
        try:
            reader.follow(block)
        except Exception as error:
            raise AssertionError(f"{document.name}:{block.line} ({block.name}): {error!r}") from error


@pytest.mark.parametrize("document", [*GUIDE, DOCS.parent / "README.md"], ids=lambda path: path.stem)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target
