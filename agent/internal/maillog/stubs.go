package maillog

func (p *Parser) courier(h *header, e *Event) bool { return false }
