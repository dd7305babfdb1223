# The lab: docs/lab.md. Exit code 77 of the program says that this machine can't run it.
LAB := $(BIN)/lab
.PHONY: lab-program lab-up lab-down lab-status lab-conformance test-api e2e e2e-long
# A name of its own: make can't have a target with a space in it.
lab-program:
	@cd lab && GOWORK=off $(GO) build $(GOFLAGS_BUILD) -o '$(LAB)' ./cmd/lab

# Runs the program; what this machine can't do is skipped, not failed.
lab-run = @'$(LAB)' $(1) || { rc=$$?; if [ $$rc = 77 ]; then echo "$@: skipped"; else exit $$rc; fi; }

lab-up: lab-program ## a real Kubernetes with Knative on this machine (root; compiles it first, once: 10-20 minutes)
	$(call lab-run,up)
lab-down: lab-program ## end the lab and leave nothing of it
	$(call lab-run,down)
lab-status: lab-program ## what the lab runs, its addresses and memory
	$(call lab-run,status)
lab-conformance: lab-program ## public conformance suites against the lab's ingress (root)
	$(call lab-run,conformance)
# RUN=REGEXP chooses tests, PKG='./DIR ...' packages.
lab-test = test $(1) $(if $(RUN),--run '$(RUN)') $(PKG)
test-api: lab-program ## tests beside a real API server with Knative's webhook and controller (no root)
	$(call lab-run,$(call lab-test,api))
# Real pipelines run on real base images; without them those tests are skipped
# and say so.
node-images = @'$(BIN)/faasctl' image build base/nodejs18 build/nodejs18 >/dev/null || true
e2e: build lab-program ## tests in the full lab, which is started for them (root)
	$(node-images)
	$(call lab-run,$(call lab-test,e2e))
e2e-long: build lab-program ## e2e with its longer runs, and the ingress conformance suites
	$(node-images)
	$(call lab-run,$(call lab-test,e2e --long))
	$(call lab-run,conformance)
