package bpf

// HintError is an error for people: what went wrong, and what to do about it.
type HintError struct {
	Err  error
	Hint string // one sentence or command, no full stop
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// HintText returns the hint. Callers find it by this method, so that they need not know this package.
func (e *HintError) HintText() string { return e.Hint }

func hint(err error, text string) error { return &HintError{Err: err, Hint: text} }
