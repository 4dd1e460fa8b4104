package maillog

type twice struct{}

func (p *Parser) exim(h *header, e *Event) bool      { return false }
func (p *Parser) sendmail(h *header, e *Event) bool  { return false }
func (p *Parser) opensmtpd(h *header, e *Event) bool { return false }
func (p *Parser) courier(h *header, e *Event) bool   { return false }
