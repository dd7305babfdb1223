# Kuroko: `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
GO ?= go
BIN := $(CURDIR)/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# -trimpath and no VCS stamp: the same sources give the same binary anywhere.
# The tag leaves out what urfave/cli needs to write man pages: a Markdown parser
# that every start would set up.
GOFLAGS_BUILD := -trimpath -buildvcs=false -tags urfave_cli_no_docs
LDFLAGS := -s -w -X main.version=$(VERSION)
export CGO_ENABLED = 0

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

.PHONY: build
build: ## compile the programs into bin/
	$(GO) build $(GOFLAGS_BUILD) -ldflags '$(LDFLAGS)' -o '$(BIN)/' ./cmd/...

.PHONY: check
check: ## format, vet, staticcheck, unit tests, import direction; under a minute once caches are warm
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); if [ -n "$$out" ]; then echo "gofmt -w these files:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=tools/lint/go.mod staticcheck ./...
	$(GO) test -short ./...

.PHONY: test
test: build ## all tests that need no root, cluster or Docker
	@# Pipelines run on real base images; without them those tests are skipped and say so.
	@'$(BIN)/faasctl' image build $(filter-out runner,$(IMAGES)) >/dev/null || true
	@# As go test ./..., and in the end how many tests were skipped, and why.
	set -o pipefail; $(GO) test -json ./... | $(GO) run ./tools/skips

# What the tests above leave out because it takes minutes: compilers, Maven, and
# where npm's registry answers, other package managers.
.PHONY: test-images
test-images: build ## slow tests with the real base and build images; made if missing
	@'$(BIN)/faasctl' image build $(filter-out runner,$(IMAGES)) >/dev/null
	@set -o pipefail; if npm view --silent pnpm version >/dev/null 2>&1; then export KUROKO_TEST_NPM=1; fi; \
	KUROKO_TEST_IMAGES=1 $(GO) test -json -count=1 -run '^TestReal|^TestMavenBuild$$' ./builder ./builder/debian ./cmd/stage-runner | $(GO) run ./tools/skips

# What make images makes: about 420 MB of packages, and 770 MB of images.
RUNTIMES := nodejs18 python3.11 java17
IMAGES ?= $(RUNTIMES:%=base/%) $(RUNTIMES:%=build/%) runner
# A folder with seed/ in it: platform.json and the seed bundle of the runner image.
SEED ?=
.PHONY: images
images: build ## base, build and runner images from Debian packages; SEED=DIR gives the runner its seed bundle
	@# stdout has one JSON object per image, with every package: for programs.
	@'$(BIN)/faasctl' image build $(IMAGES) --files '$(CURDIR)' $(if $(SEED),--files '$(SEED)') >/dev/null

.PHONY: clean
clean: ## remove what the other targets made in this folder
	rm -rf '$(BIN)' .faas tools/node_modules

.PHONY: demo
demo: build ## the whole main job on this machine; MARK=word, KEEP=1, TARGET=knative (after make lab-up)
	$(GO) build $(GOFLAGS_BUILD) -ldflags '$(LDFLAGS)' -o '$(BIN)/demo' ./examples/demo
	@'$(BIN)/faasctl' image build base/nodejs18 build/nodejs18 >/dev/null
	@'$(BIN)/demo' run --bin '$(BIN)' $(if $(MARK),--mark "$$MARK") $(if $(KEEP),--keep) $(if $(TARGET),--target "$$TARGET")

.PHONY: bench
bench: ## start of the runner, and builds cold / code change / no change with request counts
	$(GO) test -run '^$$' -bench . ./cmd/stage-runner ./builder

# Makes what it needs: images, lock files, wheels, a Maven repository, the builders.
.PHONY: bench-build
bench-build: ## our engines against kaniko, buildah and BuildKit, 3 rounds in some 25 minutes; APPS=node-small,node-270,python,java ROUNDS=1 ENGINES=layer,buildkit LIMIT=40m OUT=docs/benchmarks.md
	@# -mod=mod: the module follows the repository's own requirements.
	cd bench && GOFLAGS=-mod=mod $(GO) run . $(if $(APPS),-apps '$(APPS)') $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(ENGINES),-engines '$(ENGINES)') $(if $(LIMIT),-limit '$(LIMIT)') $(if $(OUT),-out '$(if $(filter /%,$(OUT)),$(OUT),$(CURDIR)/$(OUT))')

include lab/lab.mk
