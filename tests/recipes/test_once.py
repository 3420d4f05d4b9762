"""What recipes/once.sh says: what is finished is taken as it is, what was cut off goes on."""

import subprocess
from pathlib import Path

ONCE = Path(__file__).parents[2] / "recipes" / "once.sh"
STAND_IN = """#!/usr/bin/env bash
echo "$@" >> {calls}
folder=$(printf '%s\\n' "$@" | sed -n 's/^run_dir=//p')
mkdir -p "$folder"
[[ -f $folder/begun ]] || {{ touch "$folder/begun"; kill -9 $$; }}  # the first time
echo '{{}}' > "$folder/metrics.json"
"""


def test_a_recipe_goes_on_where_it_was_killed(tmp_path):
    calls, python, work = tmp_path / "calls", tmp_path / "python", tmp_path / "work"
    python.write_text(STAND_IN.format(calls=calls))
    python.chmod(0o755)
    recipe = (f"set -euo pipefail; python={python}; source {ONCE}; "
              f"once {work}/a stage=aut seed=3; once {work}/b stage=sft; echo all")

    def run() -> str:
        return subprocess.run(["bash", "-c", recipe], capture_output=True, text=True).stdout

    assert [run(), run(), run(), run()] == ["", "", "all\n", "all\n"]  # killed in a, then in b
    first, second = (f"-m qwen3asr_train run_dir={work}/{name} resume=auto {rest}"
                     for name, rest in (("a", "stage=aut seed=3"), ("b", "stage=sft")))
    assert calls.read_text().splitlines() == [first, first, second, second]
