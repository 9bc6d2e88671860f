package sts

import (
	"io"
	"log"
)

// discardLog takes what the test server says about clients that do not like its certificate.
var discardLog = log.New(io.Discard, "", 0)
