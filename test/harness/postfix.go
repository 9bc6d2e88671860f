package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// PostfixMaster is the program that runs a Postfix, as: PostfixMaster -c DIRECTORY -d.
const PostfixMaster = "/usr/lib/postfix/sbin/master"

const postfixMain = `compatibility_level = 3.6
queue_directory = %[1]s/spool
data_directory = %[1]s/lib
mail_owner = postfix
setgid_group = postdrop
maillog_file = %[1]s/maillog
maillog_file_prefixes = %[1]s
mydestination =
inet_protocols = ipv4
alias_maps =
alias_database =
`

const postfixServices = ` inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
pickup unix n - n 60 1 pickup
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
`

// PostfixFiles makes the files of a Postfix below dir, which others must be able to read: it listens at listen, main is added to main.cf
// and services to master.cf. It returns the configuration directory; the log is in dir/maillog.
func PostfixFiles(t testing.TB, dir, listen, main, services string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("running a Postfix needs root")
	}
	Need(t, "postfix", "postfix")
	conf := filepath.Join(dir, "etc")
	for _, d := range []string{"etc", "spool", "lib"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"main.cf": fmt.Sprintf(postfixMain, dir) + main, "master.cf": listen + postfixServices + services} {
		if err := os.WriteFile(filepath.Join(conf, name), []byte(content), 0644); err != nil {
			t.Fatal(err)
		}
	}
	Run(t, "", "postfix", "-c", conf, "post-install", "set-permissions", "create-missing")
	Run(t, "", "chown", "postfix", filepath.Join(dir, "lib"))
	return conf
}
