"""What the runners of CI systems and the servers of editors run in a job's container.

The forms are those of GitLab's runner (shells/bash.go, executors/docker), GitHub's runner (StepHost.cs,
ScriptHandlerHelpers.cs, ContainerInfo.cs) and the server of Visual Studio Code (check-requirements.sh), in this
project's words.
"""

from __future__ import annotations

from collections.abc import Sequence

# GitLab's runner takes the first shell that it finds.
_SHELLS = (
    *("/usr/local/bin/bash", "/usr/bin/bash", "/bin/bash"),
    *("/usr/local/bin/sh", "/usr/bin/sh", "/bin/sh", "/busybox/sh"),
)

# Of GitHub's runner: the main process of the container, and the shells of steps with `shell: bash` and `shell: sh`.
GITHUB_MAIN_PROCESS = ("tail", "-f", "/dev/null")
GITHUB_BASH = ("bash", "--noprofile", "--norc", "-e", "-o", "pipefail")
GITHUB_SH = ("sh", "-e")

# It decides by the distribution which Node it mounts.
GITHUB_DISTRIBUTION = ("sh", "-c", "cat /etc/*release | grep ^ID")

# The order to stop that GitLab's runner gives, and Kubernetes with it.
GITLAB_STOP = """\
set -e
for process in $(cd /proc && ls -rvd [0-9]*); do
    if [ $$ -ne $process ] && [ $process -ne 1 ]; then
        kill -TERM $process 2>/dev/null || continue
        attempts=6
        while [ -e /proc/$process ] && [ $attempts -gt 0 ]; do
            sleep 1
            attempts=$((attempts-1))
        done
    fi
done
"""

# What the runner's own stages do to the files of a job: variables, caches, clean-up, versions of git.
GITLAB_STAGES = (
    'echo "Running on $(hostname) via a runner..."',
    "mkdir -p /tmp/builds.$$",
    "printf '%s' secret > /tmp/builds.$$/FILE_VARIABLE",
    "cat << EOF > /tmp/builds.$$/dotenv\nGREETING=hello\nEOF",
    "touch /tmp/builds.$$/dotenv",
    'while read -r line; do export "$line"; done < /tmp/builds.$$/dotenv',
    '[ "$GREETING" = hello ]',
    "printf '%b\\n' \"section_start:$(date +%s):section_a\\r\"",
    'current="$(git version | cut -d " " -f 3)"',
    'least="$(printf \'%s\\n%s\' 2.9 "$current" | sort --version-sort | head -n1)"',
    '[ "$least" = 2.9 ]',
    "git config -f /tmp/builds.$$/config --replace-all credential.helper ''",
    'find /tmp/builds.$$ -name "*.lock" -type f -exec rm -f {} +',
    "chmod -R u+rwX /tmp/builds.$$",
    "rm -r -f /tmp/builds.$$",
)


def gitlab_job(commands: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs a job's ``script`` as GitLab's runner does.

    The runner sends the script to the shell's standard input.
    """
    detection = " ".join(f"if [ -x {shell} ]; then exec {shell}; fi;" for shell in _SHELLS)
    lines = "".join(f"echo $ {_quoted(command)}\n{command}\n" for command in commands)
    script = (
        "trap exit 1 TERM\n"
        # Where grep is missing, this is the end of `pipefail`.
        "if set -o | grep pipefail > /dev/null; then set -o pipefail; fi; set -o errexit\n"
        "set +o noclobber\n"
        f": | eval {_quoted(lines)}\n"
        "exit 0\n"
    )
    return "sh", "-c", f"printf '%s' {_quoted(script)} | sh -c {_quoted(f'{detection} exit 1')}"


# Visual Studio Code starts its server only if the C library and libstdc++ are new enough.
VSCODE_REQUIREMENTS = """\
set -e
[ "$(uname -m)" != "" ]
newest_cxx() {
    library=$(/sbin/ldconfig -p | grep 'libstdc++.so.6' | awk '{print $NF}' | head -n1)
    grep -ao 'GLIBCXX_[0-9]*\\.[0-9]*\\.[0-9]*' "$(readlink -f "$library")" | sort -V | tail -1 | sed 's/GLIBCXX_//'
}
version_of_libc() {
    library=$(/sbin/ldconfig -p | grep 'libc.so.6' | awk '{print $NF}' | head -n1)
    cat "$(readlink -f "$library")" | sed -n 's/.*release version \\([0-9]\\+\\.[0-9]\\+\\).*/\\1/p'
}
at_least() {
    [ "$(printf '%s\\n' "$1" "$2" | sort -V | head -n1)" = "$1" ]
}
at_least 3.4.25 "$(newest_cxx)"
at_least 2.28 "$(version_of_libc)"
[ -z "$(ldd --version 2>&1 | grep 'musl libc')" ]
"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
