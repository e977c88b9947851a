# Every job of the project; continuous integration runs the same commands.
#
#   make demo            from nothing to a running container: set up, serve, pull, run
#   make serve           the server in the foreground; PORT=9090 make serve for another port than 8080
#   make test            all tests
#   make acceptance      all clients that Debian has, for real; as root, it installs them
#   make acceptance-new  the same with the clients of Debian testing, in a chroot; not part of continuous integration
#   make check           linters, types, formatting, import contracts
#   make setup           what the others share; does nothing where nothing is missing
#   make lock            pin the Python requirements again
#   make clean           remove what set-up made here (not what it installed from Debian, nor /nix)

PYTHON ?= python3
# Test processes at the same time.
JOBS ?= 2
export PYTHON

BIN := .venv/bin
# Set-up writes down which Nix configuration is to be used.
WITH_NIX := . var/nix/environment &&

.PHONY: help setup demo serve test acceptance acceptance-new check lock clean

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@scripts/setup.sh

demo: setup
	@$(WITH_NIX) exec $(BIN)/python -m scripts.demo

serve: setup
	@$(WITH_NIX) exec scripts/serve.sh

test:
	@scripts/setup.sh x86_64-linux aarch64-linux
	$(WITH_NIX) $(BIN)/pytest -n $(JOBS) --dist loadgroup --junitxml=var/tests.xml
	@$(BIN)/python scripts/no_skips.py var/tests.xml

acceptance: setup
	@scripts/acceptance/install_clients.sh
	$(WITH_NIX) $(BIN)/pytest tests/acceptance --junitxml=var/acceptance/tests.xml
	@$(BIN)/python scripts/no_skips.py var/acceptance/tests.xml

acceptance-new:
	@scripts/acceptance/in_debian_testing.sh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock:
	@scripts/lock.sh

clean:
	rm -rf .venv var packagesets/debian/lock .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
