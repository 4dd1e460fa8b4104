package maillog

func (p *Parser) sendmail(h *header, e *Event) bool { return false }
func (p *Parser) courier(h *header, e *Event) bool  { return false }
