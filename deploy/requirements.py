"""Which of pyproject.toml's dependencies an image needs, one a line.

python requirements.py EXTRAS       such as container,ray for the server's, or page,demo
"""

import re
import sys
import tomllib
from pathlib import Path

NOT_NEEDED = {
    "container": {"rich", "tenacity", "torch-model-archiver", "typer"},  # no command line, no packing of archives
    "page": {"safetensors", "timm", "torch", "torch-model-archiver", "torchserve", "torchvision"},  # no model
}

extras = sys.argv[1].split(",")

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
wanted = [*project["dependencies"]]
for extra in extras:
    wanted += project["optional-dependencies"][extra]
names = {requirement: re.split(r"[^\w.-]", requirement)[0] for requirement in wanted}
not_needed = NOT_NEEDED[extras[0]]
if missing := not_needed - set(names.values()):
    sys.exit(f"pyproject.toml has no dependency {', '.join(sorted(missing))}: mend deploy/requirements.py")
sys.stdout.writelines(
    f"{requirement}\n" for requirement, name in names.items() if name not in {*not_needed, project["name"]}
)
