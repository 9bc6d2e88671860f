# make help lists what there is.

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
RUN_DIR ?= run
BINDIR   = $(DESTDIR)$(PREFIX)/bin
DOCDIR   = $(DESTDIR)$(PREFIX)/share/doc/chasquid
MANDIR   = $(DESTDIR)$(PREFIX)/share/man
FUZZTIME ?= 10s
ROUNDS  ?= 200

# Stamped into the binary. Without git and without these, the binary finds out for itself from its build information.
VERSION           ?= $(shell git describe --tags --always --dirty 2>/dev/null)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
LDFLAGS = -s -w $(if $(VERSION),-X main.version=$(VERSION)) $(if $(SOURCE_DATE_EPOCH),-X main.sourceDateTs=$(SOURCE_DATE_EPOCH))

LINKS = chasquid-util mda-lmtp smtp-check

.PHONY: build help all run test bench fault install install-binaries install-config-skeleton deb docs fuzz lint fmt clean

build: chasquid ## build ./chasquid (what make does without a target)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do printf '%-24s %s\n' "$$target" "$$text"; done

all: chasquid docs ## build, and write what is generated in docs/ anew

# The Go tool knows best what has changed, so this always asks it.
.PHONY: chasquid
chasquid:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "$(LDFLAGS)" -o $@ .

run: chasquid ## build, and run it in RUN_DIR (./run) with a first message; needs nothing but Go
	@mkdir -p $(RUN_DIR)
	@$(GO) build -o $(RUN_DIR)/.quickstart ./test/quickstart
	@$(RUN_DIR)/.quickstart -bin ./chasquid -dir $(RUN_DIR)

test: ## run all tests; as root, what they need is installed first
	@scripts/packages.sh
	$(GO) test ./...

bench: chasquid ## measure, next to peers; BENCHFLAGS are passed on
	@scripts/packages.sh
	$(GO) run ./test/bench -bin ./chasquid $(BENCHFLAGS)

# Kills, power cuts and full disks under load. Takes a while, and root for the loop mounts.
fault: chasquid ## kill, cut the power and fill the disk under load, ROUNDS (200) times each; as root
	@scripts/packages.sh
	CHASQUID_FAULT_ROUNDS=$(ROUNDS) CHASQUID_BINARY=$(CURDIR)/chasquid $(GO) test -v -count=1 -timeout 120m ./test/fault/...

install: install-binaries install-config-skeleton ## install everything; PREFIX (/usr/local) and DESTDIR work as usual

install-binaries: chasquid ## install the programs and the documents only
	install -d $(BINDIR) $(DOCDIR)/monitoring
	install -m 755 chasquid $(BINDIR)/chasquid
	for l in $(LINKS); do ln -sf chasquid $(BINDIR)/$$l; done
	install -m 644 README.md LICENSE docs/*.md etc/systemd/strict.conf $(DOCDIR)
	install -m 644 monitoring/*.yml monitoring/*.json $(DOCDIR)/monitoring
	@for m in docs/man/*.[1-8]; do [ ! -e "$$m" ] || install -D -m 644 "$$m" "$(MANDIR)/man$${m##*.}/$${m##*/}"; done

# Does not touch configuration that is there already.
install-config-skeleton: ## install the example configuration and the units; what is there is kept
	scripts/install-config.sh "$(DESTDIR)"

deb: chasquid ## build a Debian package in dist/
	scripts/deb.sh "$(VERSION)"

docs: ## write what is generated in docs/ anew
	$(GO) generate ./internal/config
	$(GO) test -run TestImports -update .
	$(GO) test ./internal/cli -run TestMan -update
	$(GO) test ./test/docs -update
	$(GO) test ./test/dashboard -update

# The fuzz targets of all packages, one after the other.
fuzz: ## run each fuzz test for FUZZTIME (10s)
	scripts/fuzz.sh $(FUZZTIME)

lint: ## look at formatting, and run go vet and staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

fmt: ## format the source
	gofmt -w $$(git ls-files '*.go')

clean: ## remove what was built, and RUN_DIR
	rm -rf chasquid dist $(RUN_DIR)
