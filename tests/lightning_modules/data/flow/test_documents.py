"""The example in docs/data.md runs."""

import re
from pathlib import Path


def test_the_example_of_own_recordings_runs(capsys):
    text = (Path(__file__).parents[4] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/data.md", "exec"), {"__name__": "example"})
    assert "torch.Size([1, 2, 5, 2, 32, 32])" in capsys.readouterr().out
