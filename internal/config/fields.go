package config

import (
	_ "embed"
	"regexp"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
)

//go:embed config.proto
var protoText string

// Field is the reference documentation of one setting.
type Field struct {
	Section string
	Name    string // "hostname"; settings inside a block have its name in front: "acme.email"
	Number  int
	Type    string // "text", "number", "true or false", "block"
	List    bool   // may be given several times
	Default string // as it would be written, or in words; empty if there is none
	Unit    string
	Example string
	Restart string   // why a change takes effect at the next restart only; empty: it takes effect at a reload
	Doc     []string // lines
}

// RestartOnly returns the names of the settings that a reload leaves as they are.
func RestartOnly() []string {
	var list []string
	for _, f := range Fields() {
		if f.Restart != "" {
			list = append(list, f.Name)
		}
	}
	return list
}

// Fields returns the documentation of all settings, from the comments of config.proto, in their order there.
var Fields = sync.OnceValue(parseFields)

// Sections returns the sections of the settings in the order of the reference.
func Sections() []string {
	var list []string
	for _, f := range Fields() {
		if !slices.Contains(list, f.Section) {
			list = append(list, f.Section)
		}
	}
	return list
}

var fieldRE = regexp.MustCompile(`^\s+(repeated |optional )?(\w+) (\w+) = (\d+);`)

func parseFields() []Field {
	byMessage := map[string][]Field{}
	var message, section string
	var doc []string
	for _, line := range strings.Split(protoText, "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "message "):
			message = strings.Fields(line)[1]
			doc = nil
		case strings.HasPrefix(trimmed, "// [section] "):
			section = strings.TrimPrefix(trimmed, "// [section] ")
		case strings.HasPrefix(trimmed, "//"):
			doc = append(doc, strings.TrimSpace(strings.TrimPrefix(trimmed, "//")))
		case fieldRE.MatchString(line):
			m := fieldRE.FindStringSubmatch(line)
			f := Field{Section: section, Name: m[3], List: m[1] == "repeated ", Type: m[2]}
			for _, d := range doc {
				f.addDoc(d)
			}
			byMessage[message] = append(byMessage[message], f)
			doc = nil
		case trimmed == "":
			doc = nil
		}
	}
	return finish(byMessage)
}

func (f *Field) addDoc(line string) {
	for prefix, dst := range map[string]*string{"Default: ": &f.Default, "Unit: ": &f.Unit, "Example: ": &f.Example, "Restart: ": &f.Restart} {
		if v, ok := strings.CutPrefix(line, prefix); ok {
			*dst = v
			return
		}
	}
	f.Doc = append(f.Doc, line)
}

// finish flattens the blocks into their fields and fills in numbers and defaults from the descriptor and Default.
func finish(byMessage map[string][]Field) []Field {
	var list []Field
	defaults := Default().ProtoReflect()
	for _, f := range byMessage["Settings"] {
		fd := defaults.Descriptor().Fields().ByName(protoreflect.Name(f.Name))
		f.Number = int(fd.Number())
		inner := byMessage[f.Type]
		f.describe(fd, defaults)
		list = append(list, f)
		for _, g := range inner {
			sub := defaults.Get(fd)
			gd := fd.Message().Fields().ByName(protoreflect.Name(g.Name))
			g.Section, g.Number = f.Section, int(gd.Number())
			var m protoreflect.Message
			if !fd.IsList() {
				m = sub.Message()
			}
			g.describe(gd, m)
			g.Name = f.Name + "." + g.Name
			list = append(list, g)
		}
	}
	return list
}

// describe sets the type in words and, unless the comment gives one, the default as it would be written.
func (f *Field) describe(fd protoreflect.FieldDescriptor, defaults protoreflect.Message) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		f.Type = "text"
	case protoreflect.BoolKind:
		f.Type = "true or false"
	case protoreflect.MessageKind:
		f.Type = "block"
		return
	default:
		f.Type = "number"
	}
	if f.Default != "" || defaults == nil || !defaults.Has(fd) {
		return
	}
	v := defaults.Get(fd)
	var parts []string
	if fd.IsList() {
		for i := range v.List().Len() {
			parts = append(parts, `"`+v.List().Get(i).String()+`"`)
		}
	} else if fd.Kind() == protoreflect.StringKind {
		parts = append(parts, `"`+v.String()+`"`)
	} else {
		parts = append(parts, v.String())
	}
	f.Default = strings.Join(parts, ", ")
}
