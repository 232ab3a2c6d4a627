package lbstate

// Outcomes of a write.
const (
	Created   = "created"
	Changed   = "changed"
	Unchanged = "unchanged"
	Deleted   = "deleted"
)

// WriteResult says what the write of one object did. Revision is the one that
// the write made, or of an unchanged object the one that it has.
type WriteResult struct {
	Revision uint64  `json:"revision"`
	Outcome  string  `json:"outcome"`
	Warnings []Fault `json:"warnings,omitempty"`
}

// BatchResult says what a transaction did. Revision is the one that it made, or
// where nothing changed that of the state. Outcome is that of its one object;
// of several it is changed or unchanged.
type BatchResult struct {
	Revision uint64          `json:"revision"`
	Outcome  string          `json:"outcome"`
	Objects  []ObjectOutcome `json:"objects"` // each once, as first named
	Warnings []Fault         `json:"warnings,omitempty"`
}

// ObjectOutcome says what a transaction did to one object.
type ObjectOutcome struct {
	Ref
	Outcome  string `json:"outcome"`
	Revision uint64 `json:"revision"` // of the object; of a deleted one that of its deletion
}

func overall(objects []ObjectOutcome) string {
	if len(objects) == 1 {
		return objects[0].Outcome
	}
	for _, o := range objects {
		if o.Outcome != Unchanged {
			return Changed
		}
	}
	return Unchanged
}

// single is the result of a transaction with one object.
func (r BatchResult) single() WriteResult {
	w := WriteResult{Revision: r.Revision, Outcome: r.Outcome, Warnings: r.Warnings}
	if len(r.Objects) == 1 {
		w.Revision = r.Objects[0].Revision
	}
	return w
}
