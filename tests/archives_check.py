"""Run by ``nox -s wheel`` over two builds of one tree: what is in the wheel and in the sdist."""

import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "nexusflow_integrations"
FOR_PACKAGERS = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "constraints.txt"}

first, second = (sorted(Path(folder).iterdir()) for folder in sys.argv[1:])
assert [path.name for path in first] == [path.name for path in second]
for one, other in zip(first, second, strict=True):
    assert one.read_bytes() == other.read_bytes(), f"{one.name} is not reproducible"

wheel = next(path for path in first if path.suffix == ".whl")
sdist = next(path for path in first if path.name.endswith(".tar.gz"))

inside = set(zipfile.ZipFile(wheel).namelist())
tops = {name.split("/")[0] for name in inside}
assert {top.split("-")[0] for top in tops} == {PACKAGE}, tops
assert f"{PACKAGE}/py.typed" in inside
assert any(name.endswith("/licenses/LICENSE") for name in inside)
sources = {path.as_posix() for path in Path(PACKAGE).rglob("*.py")}
assert sources <= inside, sources - inside
kinds = {Path(name).suffix for name in inside if name.startswith(f"{PACKAGE}/")}
assert kinds <= {".py", ".typed", ".html", ".css", ".js"}, kinds

with tarfile.open(sdist) as archive:
    packed = {name.partition("/")[2] for name in archive.getnames()}
assert packed >= FOR_PACKAGERS, FOR_PACKAGERS - packed
tests = {path.as_posix() for path in Path("tests").rglob("*.py")}
assert tests <= packed, tests - packed
assert not [name for name in packed if "__pycache__" in name or ".sqlite" in name]

for path, names in ((wheel, inside), (sdist, packed)):
    print(f"{path.name}: {len(names)} files, {path.stat().st_size / 1000:.0f} kB")
