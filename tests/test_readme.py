"""What README says is there is there."""

import re
from pathlib import Path

README = Path("README.md").read_text()


def test_the_file_tree_lists_exactly_the_files_that_exist() -> None:
    tree = README[README.index("dp4tl_ray/\n├──") :].split("```")[0]
    listed = set()
    folder = ""
    for line in tree.splitlines()[1:]:
        match = re.match(r"(│   )?[├└]── ([\w./]+(?:, [\w./]+)*)", line)
        for name in match.group(2).split(", ") if match else []:
            if name.endswith("/") and match and not match.group(1):
                folder = name
                listed.add(name)
            else:
                listed.add(folder + name if match and match.group(1) else name)
    package = Path("dp4tl_ray")
    files = {p.relative_to(package) for p in package.rglob("*.py") if p.name != "__init__.py"}
    # a folder of which no file is listed stands for all of them, and so does one within a folder
    alone = {name for name in listed if name.endswith("/")} - {
        f"{name.split('/')[0]}/" for name in listed if not name.endswith("/")
    }
    files = {p for p in files if f"{p.parts[0]}/" not in alone or len(p.parts) == 1}
    exist = {p.as_posix() if len(p.parts) < 3 else f"{p.parent.as_posix()}/" for p in files}
    exist |= {p.name + "/" for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert listed == exist


def test_links_and_commands_resolve() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("http") or Path(link).exists(), link
    studies = re.findall(r"experiments/\w+\.yaml", README)
    assert studies and all(Path(study).exists() for study in studies)
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    makefile = Path("Makefile").read_text()
    assert {"quickstart", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 200
