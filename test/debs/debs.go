// Package debs unpacks Debian packages without installing them, for programs that must not be installed beside others.
package debs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Unpack downloads the package into dir, unless it is there from before, and returns the directory it is unpacked in.
func Unpack(dir, name string) (string, error) {
	root := filepath.Join(dir, name)
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	if err := os.MkdirAll(dir, 0755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, name+".new")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0755); err != nil { // its programs may run as somebody else
		return "", err
	}
	get := exec.Command("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name)
	get.Dir = tmp
	if out, err := get.CombinedOutput(); err != nil {
		return "", fmt.Errorf("downloading Debian's package %s: %w\n%s", name, err, out)
	}
	files, _ := filepath.Glob(filepath.Join(tmp, strings.ReplaceAll(name, "+", "?")+"_*.deb"))
	if len(files) != 1 {
		return "", fmt.Errorf("Debian's package %s was not downloaded", name)
	}
	if out, err := exec.Command("dpkg", "-x", files[0], tmp).CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpacking %s: %w\n%s", files[0], err, out)
	}
	if err := os.Rename(tmp, root); err != nil && !os.IsExist(err) {
		if _, statErr := os.Stat(root); statErr != nil { // unless somebody else was quicker
			return "", err
		}
	}
	return root, nil
}
