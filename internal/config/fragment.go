package config

import (
	"bytes"
	"encoding/json"
)

// fragment is a piece of JSON Schema, draft 2020-12, as far as a config needs it. It
// must accept whatever its parser accepts, so that an editor never marks a file that
// serve takes; what it cannot tell (files, other keys, overflow) is left to check. Its
// patterns mean the same in Go and in JavaScript.
type fragment struct {
	Title                string              `json:"title,omitempty"`
	Description          string              `json:"description,omitempty"`
	Type                 string              `json:"type,omitempty"`
	Const                any                 `json:"const,omitempty"`
	Enum                 []any               `json:"enum,omitempty"`
	Pattern              string              `json:"pattern,omitempty"`
	MinLength            int                 `json:"minLength,omitempty"`
	Minimum              *int64              `json:"minimum,omitempty"`
	Maximum              *int64              `json:"maximum,omitempty"`
	MinItems             int                 `json:"minItems,omitempty"`
	UniqueItems          bool                `json:"uniqueItems,omitempty"`
	PrefixItems          []fragment          `json:"prefixItems,omitempty"`
	Items                *fragment           `json:"items,omitempty"`
	MinProperties        int                 `json:"minProperties,omitempty"`
	Properties           properties          `json:"properties,omitempty"`
	PropertyNames        *fragment           `json:"propertyNames,omitempty"`
	PatternProperties    map[string]fragment `json:"patternProperties,omitempty"`
	AdditionalProperties any                 `json:"additionalProperties,omitempty"` // false, or a fragment
	Required             []string            `json:"required,omitempty"`
	AnyOf                []fragment          `json:"anyOf,omitempty"`
	Not                  *fragment           `json:"not,omitempty"`
	Default              any                 `json:"default,omitempty"`

	form string // what a person writes there, for the reference page
}

// properties are the keys of a mapping, in the order of the schema.
type properties []property

type property struct {
	name string
	fragment
}

func (ps properties) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, p := range ps {
		if i > 0 {
			b.WriteByte(',')
		}
		for _, part := range []struct {
			v   any
			sep string
		}{{p.name, ":"}, {p.fragment, ""}} {
			data, err := encode(part.v)
			if err != nil {
				return nil, err
			}
			b.Write(data)
			b.WriteString(part.sep)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// encode is JSON for people, who can read < as it is.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// Schema is what a config file may say, as a JSON Schema for editors. It is made of the
// rows that read the file.
func Schema() []byte {
	data, err := encode(struct {
		Draft string `json:"$schema"`
		fragment
	}{"https://json-schema.org/draft/2020-12/schema", published()})
	if err != nil {
		panic(err) // it is made of nothing but strings, numbers and lists of them
	}
	var b bytes.Buffer
	json.Indent(&b, data, "", "  ") //nolint:errcheck // encode made it
	b.WriteByte('\n')
	return b.Bytes()
}

// published is the schema of a whole file, with its defaults.
func published() fragment {
	c := Default()
	f := schema(&c).schema
	f.Title = "The config of hangup"
	return f
}

func bound(n int64) *int64 { return &n }

// words are strings as the values of an enum.
func words(all []string) []any {
	list := make([]any, len(all))
	for i, w := range all {
		list[i] = w
	}
	return list
}
