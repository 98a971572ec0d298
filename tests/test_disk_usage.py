import pytest

from harness.disk_usage import in_words, size_of


def test_all_files_count_and_links_count_for_themselves(tmp_path):
    (tmp_path / "big").write_bytes(b"x" * 5000)
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_bytes(b"x" * 10)
    (folder / "deep" / ".b").write_bytes(b"x" * 7)
    assert size_of(folder) == 17
    assert size_of(folder / "a") == 10
    assert size_of(folder / "nothing") == 0
    (folder / "to_big").symlink_to(tmp_path / "big")
    (folder / "to_folder").symlink_to(tmp_path)
    link = len(str(tmp_path / "big"))
    assert size_of(folder) == 17 + link  # os.walk names a linked folder among the folders
    assert size_of(folder / "to_folder") == len(str(tmp_path))


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_250_000, "1.2 MB"),
        (3_000_000_000, "3.0 GB"),
        (10**15, "1000.0 TB"),
    ],
)
def test_in_words(num_bytes, words):
    assert in_words(num_bytes) == words
