"""A git repository with a package set."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# The only file of an image has the version in it.
_PACKAGE_SET = """\
{{ system }}:
let
  package = name: derivation {{
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" "mkdir -p $out/share && echo {version} > $out/share/version" ];
    PATH = "/usr/bin:/bin";
  }};
in
{{
  hello = package "hello-{version}";
  other = package "other-{version}";
  environment = package "environment-${{builtins.getEnv "SECRET"}}x";
  outside = import {outside};
  # Import from derivation: known only after a build.
  built = package (import (derivation {{
    name = "name-{version}";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" ''echo '"built-{version}"' > $out'' ];
  }}));
}}
"""

# A fixed date gives the same commits in each run.
_DATE = 1_700_000_000


class Repository:
    """A repository, each of whose commits is a version of the package set."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        return f"file://{self.directory}"

    def git(self, *arguments: str, date: int = _DATE, content: bytes = b"") -> str:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.org",
            "GIT_AUTHOR_DATE": f"{date} +0000",
            "GIT_COMMITTER_DATE": f"{date} +0000",
        }
        completed = subprocess.run(
            ["git", *arguments],
            cwd=self.directory,
            env=environment,
            check=True,
            capture_output=True,
            input=content,
            timeout=60,
        )
        return completed.stdout.decode().strip()

    def write(self, version: str, outside: str = "/etc/hostname") -> None:
        text = _PACKAGE_SET.format(version=version, outside=outside)
        (self.directory / "default.nix").write_text(text)

    def commit(self, version: str) -> str:
        """Commit a version; return the id of the commit."""
        self.write(version)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", f"version {version}")
        return self.git("rev-parse", "HEAD")
