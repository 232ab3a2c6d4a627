package probe

import (
	"fmt"
	"strconv"
	"strings"
)

// StatusRanges are ranges of status codes that are wanted. Its zero value is
// 200 to 299.
type StatusRanges struct {
	ranges [][2]int
	text   string
}

// ParseStatus reads "200-299", "200,204", "200-204, 301"; codes are 100 to 599.
func ParseStatus(s string) (StatusRanges, error) {
	out := StatusRanges{text: s}
	if strings.TrimSpace(s) == "" {
		return StatusRanges{}, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			high = low
		}
		from, err := code(low)
		if err != nil {
			return StatusRanges{}, fmt.Errorf("status %q: %w", s, err)
		}
		to, err := code(high)
		if err != nil {
			return StatusRanges{}, fmt.Errorf("status %q: %w", s, err)
		}
		if to < from {
			return StatusRanges{}, fmt.Errorf("status %q: %d-%d is empty", s, from, to)
		}
		out.ranges = append(out.ranges, [2]int{from, to})
	}
	return out, nil
}

func code(s string) (int, error) {
	s = strings.TrimSpace(s)
	n, err := strconv.Atoi(s)
	if err != nil || len(s) != 3 || n < 100 || n > 599 {
		return 0, fmt.Errorf("%q is not a status code, want 100 to 599", s)
	}
	return n, nil
}

// Has says whether a code is wanted.
func (s StatusRanges) Has(code int) bool {
	if len(s.ranges) == 0 {
		return code >= 200 && code <= 299
	}
	for _, r := range s.ranges {
		if code >= r[0] && code <= r[1] {
			return true
		}
	}
	return false
}

func (s StatusRanges) String() string {
	if len(s.ranges) == 0 {
		return "200-299"
	}
	return s.text
}
