package senders

// preset names the providers whose hosts carry the mail of millions who are nobody's spammers: blocking one of them
// blocks real mail, however much junk comes with it. Mass mailers and rented servers are not among them.
var preset = []string{
	"spf:_spf.google.com",            // Gmail, Workspace
	"spf:spf.protection.outlook.com", // Microsoft 365
	"spf:outlook.com",                // Outlook.com, Hotmail
	"spf:icloud.com",                 // Apple
	"spf:gmx.net", "spf:web.de",      // United Internet
	"spf:fastmail.com",
	"spf:_spf.protonmail.ch",
	"spf:zoho.com",
	"spf:mailbox.org",
	"spf:posteo.de",
	"spf:orange.fr",
	"spf:comcast.net",
	"domain:yahoo.com", // Yahoo and AOL: their SPF record lists nothing, and their hosts have names there
}

// Preset returns the shipped list.
func Preset() []Sender {
	list := make([]Sender, 0, len(preset))
	for _, p := range preset {
		s, err := Parse(p)
		if err != nil {
			panic(err) // a test reads them all
		}
		s.Preset = true
		list = append(list, s)
	}
	return list
}
