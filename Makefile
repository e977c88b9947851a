# Every job of the project; continuous integration runs the same commands.
#
#   make demo              from nothing to a running container: set up, serve, pull, run
#   make serve             run the server in the foreground; PORT=9090 make serve sets another port than 8080
#   make test              all tests
#   make test-plain-user   the security tests, as an unprivileged user with its own Nix store
#   make audit             look up advisories for the pinned Python packages; needs the package index, so not part of continuous integration
#   make acceptance        test with all clients in Debian, and with MinIO, kaniko and Azurite where Go and Node.js are installed; as root, it installs them
#   make browser           test the pages in Debian's Chromium; as root, it installs it; screenshots in var/screenshots
#   make acceptance-new    the same with the clients of Debian testing, in a chroot; not part of continuous integration
#   make test-new-nix      unit and integration tests with the Nix of Debian testing, in a chroot
#   make debian-smoke      start the programs of Debian's 400 best-known packages in images; resumes; PART=1/10 make debian-smoke tries a tenth
#   make fuzz              run the fuzz tests with more, random inputs; FUZZ_EFFORT=100 make fuzz runs more
#   make docs              write the generated reference pages, and build the documentation in var/site
#   make screenshots       take docs/screenshots of a server with Debian's packages; as root, it installs Chromium
#   make check             linters, types, formatting, import contracts
#   make setup             set up everything that the other targets need; skips finished steps
#   make conformance-peer  the conformance suite against Debian's docker-registry
#   make bench             compare the speed with nginx and docker-registry; 4 minutes
#   make bench-layers      compare rules for layers by bytes pulled and stored, on all of Debian; a few minutes
#   make bench-pack        measure packing, and compare it with the bound and a pipe
#   make bench-storage     measure reading, writing and memory of each storage backend
#   make bench-cold        measure the first request for an image, by step
#   make bench-remote      measure first requests whose packages are in a binary cache
#   make equality          compare the images and archives of 200 of Debian's packages from a binary cache with those from the store; as root
#   make bench-index       measure the package index of Debian's set: its making, searches, and requests; NIXPKGS=DIR make bench-index adds that set
#   make bench-refusals    compare the time of what access rules refuse with that of what is missing; two minutes
#   make crash             kill a server at 100 random moments of cold builds; ROUNDS=10 SEED=7 make crash sets others
#   make soak              run a few hundred clients for ten minutes and check for leaks; SOAK_SECONDS=60 make soak is shorter
#   make operations        check the dashboard, the alerts and the metrics' documentation with a real Prometheus; half a minute
#   make gc-many           collect and scrub 100,000 blobs, and measure the memory; some minutes
#   make lock              pin the Python requirements again
#   make clean             remove what set-up made here (not what it installed from Debian, nor /nix, nor Nix's build users)

PYTHON ?= python3
# Concurrent test processes: more than two processors, since many tests wait for servers and builders.
JOBS ?= 3
export PYTHON

BIN := .venv/bin
# Set-up writes the environment: the configuration of Nix to use, and a PATH with nixery at its end.
WITH_NIX := . var/nix/environment &&

.PHONY: help setup demo serve test test-plain-user audit acceptance debian-smoke browser acceptance-new test-nix test-new-nix fuzz docs screenshots check conformance-peer bench bench-layers bench-pack bench-cold bench-remote bench-index bench-storage bench-refusals equality crash soak gc-many operations lock clean

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
	@scripts/install_peers.sh docker-registry=docker-registry nginx=nginx-light
	$(WITH_NIX) $(BIN)/pytest -n $(JOBS) --dist loadgroup --junitxml=var/tests.xml
	@$(BIN)/python scripts/no_skips.py var/tests.xml

# Without the tests of what no user changes: units, addresses of clients, the answers of buckets and of evaluations.
test-plain-user: setup
	@scripts/as_plain_user.sh $(BIN)/python -m pytest -p no:cacheprovider -n $(JOBS) --dist loadgroup -m security \
	    --ignore tests/integration/test_buckets.py --ignore tests/integration/test_clients.py \
	    --ignore tests/integration/test_hostile_package_sets.py tests/integration

audit:
	@scripts/audit.sh

fuzz: setup
	$(WITH_NIX) FUZZ_EFFORT=$${FUZZ_EFFORT:-20} $(BIN)/pytest -n $(JOBS) --dist loadgroup tests/fuzz

acceptance:
	@scripts/setup.sh x86_64-linux aarch64-linux
	@scripts/acceptance/install_clients.sh
	@scripts/acceptance/install_stores.sh
	@scripts/acceptance/install_issuers.sh
	@scripts/acceptance/install_builders.sh
	$(WITH_NIX) $(BIN)/pytest tests/acceptance --junitxml=var/acceptance/tests.xml
	@$(BIN)/python scripts/no_skips.py var/acceptance/tests.xml
	@for access in everyone user; do \
	    $(WITH_NIX) $(BIN)/pytest -q tests/conformance --access $$access || exit; \
	done
	@stores=$$(grep -v : var/acceptance/stores | paste -sd ,); [ -z "$$stores" ] || { \
	    $(BIN)/pytest -n $(JOBS) --dist loadgroup tests/storage_contract --buckets "$$stores" --junitxml=var/acceptance/stores.xml && \
	    $(BIN)/python scripts/no_skips.py var/acceptance/stores.xml; }

debian-smoke: setup
	@$(WITH_NIX) exec $(BIN)/python -m scripts.debian_smoke --part $${PART:-1/1} --jobs $(JOBS) $${AGAIN:+--again $$AGAIN}

browser: setup
	@scripts/install_chromium.sh
	$(WITH_NIX) $(BIN)/pytest tests/browser --junitxml=var/browser.xml
	@$(BIN)/python scripts/no_skips.py var/browser.xml

acceptance-new:
	@scripts/in_debian_testing.sh acceptance acceptance

# Everything that depends on the version of Nix.
test-nix:
	@scripts/setup.sh x86_64-linux aarch64-linux
	@scripts/install_peers.sh docker-registry=docker-registry nginx=nginx-light
	$(WITH_NIX) $(BIN)/pytest -n $(JOBS) --dist loadgroup tests/unit tests/integration --junitxml=var/nix/tests.xml
	@$(BIN)/python scripts/no_skips.py var/nix/tests.xml

test-new-nix:
	@scripts/in_debian_testing.sh test-nix nix

docs: setup
	@$(BIN)/python -m scripts.reference
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'documentation: var/site/index.html'

screenshots: setup
	@scripts/install_chromium.sh
	@$(WITH_NIX) exec $(BIN)/python -m scripts.screenshots

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

conformance-peer: setup
	@scripts/install_peers.sh docker-registry=docker-registry
	@$(WITH_NIX) PATH=$$PATH:/usr/sbin:/sbin exec $(BIN)/python -m scripts.conformance

bench: setup
	@scripts/install_peers.sh docker-registry=docker-registry nginx=nginx-light wrk=wrk
	@$(WITH_NIX) PATH=$$PATH:/usr/sbin:/sbin exec $(BIN)/python -m scripts.bench

bench-layers: setup
	@exec $(BIN)/python -m scripts.bench_layers

bench-pack: setup
	@$(WITH_NIX) exec $(BIN)/python -m scripts.bench_pack

bench-storage: setup
	@exec $(BIN)/python -m scripts.bench_storage

bench-refusals: setup
	@$(WITH_NIX) exec $(BIN)/python -m scripts.bench_refusals

bench-cold: setup
	@$(WITH_NIX) exec $(BIN)/python -m scripts.bench_cold

bench-remote: setup
	@$(WITH_NIX) exec $(BIN)/python -m scripts.bench_remote

equality: setup
	@$(WITH_NIX) exec nice -n 5 $(BIN)/python -m scripts.equality

bench-index: setup
	@$(WITH_NIX) exec $(BIN)/python -m scripts.bench_index $${NIXPKGS:+"$$NIXPKGS"}

crash: setup
	@$(WITH_NIX) exec $(BIN)/python -m scripts.crash --rounds $${ROUNDS:-100} $${SEED:+--seed $$SEED}

soak: setup
	@$(WITH_NIX) exec $(BIN)/python -m scripts.soak

operations: setup
	@scripts/install_peers.sh prometheus=prometheus
	@$(WITH_NIX) exec $(BIN)/python -m scripts.operations

gc-many: setup
	GC_BLOBS=$${GC_BLOBS:-100000} $(BIN)/pytest tests/unit/gc/test_many_blobs.py

lock:
	@scripts/lock.sh

clean:
	rm -rf .venv var packagesets/debian/lock .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
