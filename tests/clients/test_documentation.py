"""Every block of the documentation works as pasted, and every link leads somewhere.

The blocks of a page run in order, from a directory that looks like the root of the repository. A block
that ends with `serve` runs in the background, until the next such block or the end of the page. All
others share one shell. A `text` block right after one that runs is a part of its output, in order; `…`
stands for anything.

What would build or install is replaced: `cargo` by the binaries that exist, after a check of the names
in Cargo.toml; `npm install` and `pip install` by a check of the installed packages. Blocks that need Docker or
a cluster are `console` blocks, and do not run.
"""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
# Nothing here takes long.
TIMEOUT = 30

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "policies/README.md",
]
NOT_RUN = {"cargo", "docker", "helm", "kubectl", "valgrind", ".ci/run"}
SERVE = re.compile(r"^(?=(?:cargo run -- |target/debug/cedar-pdp )serve\b)", re.MULTILINE)


class Block:
    """A fenced block of a page."""

    def __init__(self, language, line, text, expected):
        self.language, self.line, self.text, self.expected = language, line, text, expected

    def starts_server(self):
        """Returns whether the last command of the block is `serve`."""
        starts = [match.start() for match in SERVE.finditer(self.text)]
        if not starts:
            return False
        return not re.search(r"[^\\]\n", self.text[starts[-1] :].rstrip("\n"))


def blocks(page):
    """Returns the blocks of a page; an expected output is part of the block before it."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    at, last_end = 0, None
    while at < len(lines):
        fence = re.fullmatch(r"```(\w*)", lines[at])
        if not fence:
            at += 1
            continue
        end = lines.index("```", at + 1)
        text = "\n".join(lines[at + 1 : end]) + "\n"
        follows = last_end is not None and not any(lines[last_end + 1 : at])
        if fence[1] == "text" and follows and found[-1].language in ("sh", "python"):
            found[-1].expected = text.splitlines()
        else:
            found.append(Block(fence[1], at + 1, text, None))
        at, last_end = end + 1, end
    return found


def matches(expected, printed):
    """Returns the first line of `expected` that `printed` lacks, or None."""
    lines = iter(printed.splitlines())
    for wanted in expected:
        if wanted.strip() in ("", "…"):
            continue
        pattern = re.compile(".*".join(map(re.escape, wanted.split("…"))))
        if not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return None


CARGO = '''#!{python}
"""Stands in for cargo: runs what is built, and looks up the names of everything else."""
import os, subprocess, sys, tomllib
arguments = sys.argv[1:]
manifest = tomllib.load(open("{root}/Cargo.toml", "rb"))
profiles = {{*manifest["profile"], "dev", "release"}}
kinds = {{
    "--bench": {{bench["name"] for bench in manifest["bench"]}},
    "--test": {{name.removesuffix(".rs") for name in os.listdir("{root}/tests")}},
    "--profile": profiles,
}}
if arguments[:2] == ["run", "--"]:
    os.execv("target/debug/cedar-pdp", ["cedar-pdp", *arguments[2:]])
if arguments[:2] == ["run", "--example"]:
    example = "{examples}/" + arguments[2]
    if not os.path.exists(example):
        subprocess.run(["{cargo}", "build", "--example", arguments[2]], cwd="{root}", check=True)
    os.execv(example, [example, *arguments[3:]])
if arguments[:1] not in (["build"], ["test"], ["bench"]):
    sys.exit(f"not known here: cargo {{arguments}}")
for option, name in zip(arguments, arguments[1:]):
    if option == "--":
        break
    if option in kinds and name not in kinds[option]:
        sys.exit(f"Cargo.toml has no {{option}} {{name}}")
'''
NPM = """#!/bin/sh
[ "$1 $2" = "install --prefix" ] && [ -d "{root}/$3/node_modules" ] || exec {npm} "$@"
"""
# `-m venv DIR` makes a directory with the interpreter and the packages of this test.
PYTHON = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
mkdir -p "$3/bin"
cp {programs}/python3 "$3/bin/python"
cp {programs}/pip "$3/bin/pip"
"""
PIP = """#!/bin/sh
shift
exec {python} -m pip --quiet --disable-pip-version-check install --no-index "$@"
"""
# A network of its own has all ports free. Where that is not allowed, the ports must be.
LOOPBACK_UP = (
    "import fcntl, socket, struct;"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH14x', b'lo', 0x49))"
)


def own_network():
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        try:
            if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                return command
        except FileNotFoundError:
            pass
    return []


def write_program(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def likeness_of_the_repository(directory):
    """Links all files of the repository's root, and puts the binary where a build would."""
    for entry in ROOT.iterdir():
        if entry.name not in {".git", "target", ".venv"} and not entry.name.startswith("my-"):
            (directory / entry.name).symlink_to(entry)
    binary = ROOT / os.environ.get("CEDAR_PDP_TEST_BINARY", TARGET / "debug/cedar-pdp")
    for profile in ("debug", "dist"):
        (directory / "target" / profile).mkdir(parents=True)
        (directory / "target" / profile / "cedar-pdp").symlink_to(binary.resolve())
    programs = directory / "my-bin"
    programs.mkdir()
    places = {
        "root": ROOT,
        "python": sys.executable,
        "cargo": shutil.which("cargo"),
        "npm": shutil.which("npm"),
        "examples": TARGET / "debug/examples",
    }
    for program, text in (("cargo", CARGO), ("npm", NPM), ("pip", PIP), ("python3", PYTHON)):
        write_program(programs / program, text.format(programs=programs, **places))
    return programs


class Terminals:
    """A shell for the blocks of a page, and the server that runs beside it."""

    def __init__(self, directory):
        self.directory = directory
        programs = likeness_of_the_repository(directory)
        env = {name: value for name, value in os.environ.items() if "CEDAR_PDP" not in name}
        env |= {
            "PATH": f"{programs}:{Path(sys.executable).parent}:{env['PATH']}",
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.answers, replies = os.pipe()
        network = own_network()
        self.shell = subprocess.Popen(
            [*network, "bash", "--norc"],
            cwd=directory,
            env=env,
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=[replies],
        )
        self.replies, self.server, self.count = replies, None, 0
        self.read = os.fdopen(self.answers)
        if network:
            self.tell(f"{sys.executable} -c {shlex.quote(LOOPBACK_UP)}")

    def tell(self, command):
        """Runs a command in the shell, and returns its last word: a status or a pid."""
        self.shell.stdin.write(f"{command}; echo $? >&{self.replies}\n")
        self.shell.stdin.flush()
        return int(self.read.readline())

    def files(self):
        self.count += 1
        return (self.directory / f"my-{self.count}.{kind}" for kind in ("sh", "out", "failed"))

    def run(self, block):
        """Runs a block, and returns its output and the commands that failed."""
        script, out, failed = self.files()
        script.write_text(block.text, encoding="utf-8")
        failed.touch()
        if block.language == "python":
            command = f"{sys.executable} {script} || echo 'status 9' >{failed}"
        else:
            note = f'echo "line $LINENO: status $?" >>{failed}'
            command = f"set -E; trap {shlex.quote(note)} ERR; source {script}; trap - ERR"
        self.tell(f"{{ {command}; }} >{out} 2>&1 </dev/null")
        return out.read_text(encoding="utf-8"), failed.read_text().splitlines()

    def start_server(self, block):
        self.stop_server()
        script, out, _ = self.files()
        out.touch()
        start = [match.start() for match in SERVE.finditer(block.text)][-1]
        # Its process is the one that is told to stop.
        script.write_text(f"{block.text[:start]}exec {block.text[start:]}", encoding="utf-8")
        self.shell.stdin.write(
            f"( set -e; source {script} ) >{out} 2>&1 </dev/null & echo $! >&{self.replies}\n"
        )
        self.shell.stdin.flush()
        self.server = int(self.read.readline())
        until = time.monotonic() + TIMEOUT
        while "admin on" not in out.read_text(encoding="utf-8"):
            assert time.monotonic() < until, out.read_text(encoding="utf-8")
            assert Path(f"/proc/{self.server}").exists(), out.read_text(encoding="utf-8")
            time.sleep(0.02)

    def stop_server(self):
        if self.server:
            status = self.tell(f"kill -TERM {self.server} && wait {self.server}")
            self.server = None
            assert status == 0

    def close(self):
        try:
            self.stop_server()
        finally:
            self.shell.stdin.close()
            self.shell.wait(TIMEOUT)
            self.read.close()
            os.close(self.replies)


def check_data(block, terminals):
    """Parses a block that is no command."""
    if block.language == "json":
        for line in block.text.splitlines():
            json.loads(line)
    elif block.language == "yaml":
        assert yaml.safe_load(block.text)
    elif block.language == "toml":
        parsed = tomllib.loads(block.text)
        if not any(isinstance(value, list) and isinstance(value[0], dict) for value in parsed.values()):
            # Settings, and not a list of callers or of revocations.
            (terminals.directory / "my-settings.toml").write_text(block.text, encoding="utf-8")
            assert terminals.tell("target/debug/cedar-pdp config --config my-settings.toml >/dev/null") == 0
    elif block.language == "console":
        commands = re.sub(r"\\\n", " ", block.text).splitlines()
        assert all(command.split()[0] in NOT_RUN for command in commands)
    else:
        assert block.language == "text", f"not known here: {block.language}"


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_work_as_pasted(page, tmp_path):
    terminals = Terminals(tmp_path)
    try:
        for block in blocks(page):
            where = f"{name(page)}:{block.line}"
            if block.language not in ("sh", "python"):
                check_data(block, terminals)
                continue
            if block.starts_server():
                terminals.start_server(block)
                continue
            printed, failed = terminals.run(block)
            lacks = matches(block.expected or [], printed)
            assert lacks is None, f"{where}: no line {lacks!r} in:\n{printed}"
            # A failure is expected where the page shows what is printed; a missing program never.
            if block.expected:
                failed = [line for line in failed if re.search("status (9|126|127)$", line)]
            assert not failed, f"{where}: {failed}\n{printed}"
    finally:
        terminals.close()


def pages_with_links():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.split() or [name(page) for page in PAGES]
    return [ROOT / path for path in names if (ROOT / path).exists()]


def prose(page):
    """Returns the text of a page without its code."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(page):
    """Returns the anchors of a page's headings, by GitHub's rule."""
    seen, found = {}, set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page), flags=re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
    return found


@pytest.mark.parametrize("page", pages_with_links(), ids=name)
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", re.sub(r"\[`([^`\n]*)`\]", r"[\1]", prose(page)))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{name(page)}: {link}"
        if anchor:
            assert anchor in anchors(to), f"{name(page)}: {link}"


def test_pages_are_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"(docs/{page.name}" in readme


def test_the_readme_is_short():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 250
    assert len(readme) <= 15_000


def test_pages_that_files_mention_exist():
    mentions = r"\b(docs/[a-z-]+|[A-Z]{4,})\.md\b"
    listed = subprocess.run(
        ["git", "grep", "-noIE", mentions], cwd=ROOT, capture_output=True, text=True
    )
    here = ("", "policies", "src/pdp")
    for line in listed.stdout.splitlines():
        path = line.rpartition(":")[2]
        assert any((ROOT / folder / path).exists() for folder in here), line


QUOTING = ["README.md", "docs/operations.md", "docs/limits.md", "docs/calling.md"]


@pytest.mark.parametrize("page", QUOTING)
def test_quoted_figures_are_those_of_the_benchmarks(page):
    measured = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    text = (ROOT / page).read_text(encoding="utf-8")
    for figure in re.findall(r"\b\d+\.\d+ (?:us|ms|s|MiB|x)\b|\b\d+ us\b", text):
        assert figure in measured, f"{page}: {figure}"
