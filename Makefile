# make            builds ./chasquid
# make run        builds it and runs it in ./run, with a first message; needs nothing but Go
# make test       runs all tests

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

.PHONY: build all run test bench fault install install-binaries install-config-skeleton deb docs fuzz lint fmt clean

build: chasquid

all: chasquid docs

# The Go tool knows best what has changed, so this always asks it.
.PHONY: chasquid
chasquid:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "$(LDFLAGS)" -o $@ .

run: chasquid
	@mkdir -p $(RUN_DIR)
	@$(GO) build -o $(RUN_DIR)/.quickstart ./test/quickstart
	@$(RUN_DIR)/.quickstart -bin ./chasquid -dir $(RUN_DIR)

test:
	@scripts/packages.sh
	$(GO) test ./...

bench: chasquid
	@scripts/packages.sh
	$(GO) run ./test/bench -bin ./chasquid $(BENCHFLAGS)

# Kills, power cuts and full disks under load. Takes a while, and root for the loop mounts.
fault: chasquid
	@scripts/packages.sh
	CHASQUID_FAULT_ROUNDS=$(ROUNDS) CHASQUID_BINARY=$(CURDIR)/chasquid $(GO) test -v -count=1 -timeout 120m ./test/fault/...

install: install-binaries install-config-skeleton

install-binaries: chasquid
	install -d $(BINDIR) $(DOCDIR)/monitoring
	install -m 755 chasquid $(BINDIR)/chasquid
	for l in $(LINKS); do ln -sf chasquid $(BINDIR)/$$l; done
	install -m 644 README.md LICENSE docs/*.md etc/systemd/strict.conf $(DOCDIR)
	install -m 644 monitoring/*.yml monitoring/*.json $(DOCDIR)/monitoring
	@for m in docs/man/*.[1-8]; do [ ! -e "$$m" ] || install -D -m 644 "$$m" "$(MANDIR)/man$${m##*.}/$${m##*/}"; done

# Does not touch configuration that is there already.
install-config-skeleton:
	scripts/install-config.sh "$(DESTDIR)"

deb: chasquid
	scripts/deb.sh "$(VERSION)"

docs:
	$(GO) generate ./internal/config
	$(GO) test -run TestImports -update .
	$(GO) test ./internal/cli -run TestMan -update
	$(GO) test ./test/docs -update
	$(GO) test ./test/dashboard -update

# The fuzz targets of all packages, one after the other.
fuzz:
	scripts/fuzz.sh $(FUZZTIME)

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

fmt:
	gofmt -w $$(git ls-files '*.go')

clean:
	rm -rf chasquid dist $(RUN_DIR)
