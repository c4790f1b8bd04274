package local

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Rule gives one identity to some callers. Every field that is set must fit; the first rule that fits a caller decides.
//
// The user is the only proof: the kernel notes it when the process connects. An exe narrows what a user's processes get,
// against mistakes and not against the user, who can make his programs do anything (LD_PRELOAD, ptrace) and run the named
// one after another has connected.
type Rule struct {
	UID      *uint32 `yaml:"uid"`      // effective user
	GID      *uint32 `yaml:"gid"`      // effective primary group; supplementary groups are not looked at
	Exe      string  `yaml:"exe"`      // absolute path of the program; only beside uid or gid
	Identity string  `yaml:"identity"` // name of one of Config.Identities
}

// overflow is how the kernel shows every user and group that has no number in our user namespace (user_namespaces(7)), and
// nobody's own number: it tells nobody from anybody.
const overflow = 65534

// fault tells why r can't be meant, or nil. It is pure.
func (r Rule) fault(known func(name string) bool) error {
	switch {
	case r.UID == nil && r.GID == nil && r.Exe == "":
		return errors.New("it names no uid and no gid: give it one; a rule for everybody does not exist")
	case r.UID == nil && r.GID == nil:
		return fmt.Errorf("exe %q stands alone: who may run the program can make it do anything; add a uid or gid", r.Exe)
	case r.UID != nil && unknowable(*r.UID), r.GID != nil && unknowable(*r.GID):
		return fmt.Errorf("uid and gid %d stand for every user of another user namespace: give the process a user of its own", overflow)
	case r.Exe != "" && (!path.IsAbs(r.Exe) || path.Clean(r.Exe) != r.Exe || strings.ContainsRune(r.Exe, 0)):
		return fmt.Errorf("exe %q is no clean absolute path", r.Exe)
	case r.Identity == "":
		return errors.New("it names no identity")
	case !known(r.Identity):
		return fmt.Errorf("there is no identity %q", r.Identity)
	}
	return nil
}

func unknowable(id uint32) bool { return id == overflow || id == ^uint32(0) }

// String is the rule as logs show it.
func (r Rule) String() string {
	var parts []string
	if r.UID != nil {
		parts = append(parts, "uid "+strconv.FormatUint(uint64(*r.UID), 10))
	}
	if r.GID != nil {
		parts = append(parts, "gid "+strconv.FormatUint(uint64(*r.GID), 10))
	}
	if r.Exe != "" {
		parts = append(parts, "exe "+r.Exe)
	}
	return strings.Join(parts, " ") + " -> " + r.Identity
}

// caller is what the rules judge.
type caller struct {
	uid, gid uint32

	// runs tells whether the process runs the program at path, and whether that could be found out.
	runs func(path string) (yes, known bool)
}

// decide is the name of the identity that rules give to c, or why none. It is pure but for c.runs. A rule that would fit but
// for a program that can't be found out denies: a later, wider rule was not meant for it.
func decide(rules []Rule, c caller) (identity string, reason string) {
	for i, r := range rules {
		if r.UID != nil && (*r.UID != c.uid || unknowable(c.uid)) || r.GID != nil && (*r.GID != c.gid || unknowable(c.gid)) ||
			r.UID == nil && r.GID == nil {
			continue
		}
		if r.Exe != "" {
			yes, known := c.runs(r.Exe)
			if !known {
				return "", fmt.Sprintf("it can't be told whether the caller runs %s, as rule %d demands", r.Exe, i+1)
			}
			if !yes {
				continue
			}
		}
		return r.Identity, ""
	}
	return "", "no rule names this caller"
}
