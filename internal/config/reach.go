package config

// Exposes tells whether to serve address, as it would stand in Listen, lets anyone on
// another machine run work: it can be reached from there, and there are no tokens.
// A config does not pass with such an address in Listen; a server may be handed one
// by a service manager.
func (c *Config) Exposes(address string) bool {
	return !c.Auth.Off && len(c.Auth.Tokens) == 0 && !local(address)
}
