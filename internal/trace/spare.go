package trace

import "math/bits"

// The capacities of the data of traces are powers of two up to dataLarge, and its multiples from there.
const (
	dataSmall   = 512
	dataLarge   = 8 << 10
	dataClasses = 5 // 512 to 8192 bytes
)

// spares are what traces left that are gone, for those to come: a store that is full forgets a trace for each that begins. Nobody else
// refers to the data, as whoever reads it has copied it before he lets go of the Recorder's lock. States may be referred to; see there.
type spares struct {
	max, size int64 // bytes
	states    []*state
	datas     [dataClasses][][]byte
}

// fits says whether another spare of a kind, of which there are n of that size, may stay.
func (p *spares) fits(n int, size int64) bool { return int64(n+1)*size <= p.max/(dataClasses+1) }

// state returns a state for a new trace.
func (p *spares) state() *state {
	n := len(p.states) - 1
	if n < 0 {
		return &state{}
	}
	st := p.states[n]
	p.states[n] = nil
	p.states = p.states[:n]
	p.size -= stateSize
	return st
}

func (p *spares) putState(st *state) {
	if p.fits(len(p.states), stateSize) {
		p.states = append(p.states, st)
		p.size += stateSize
	}
}

// dataClass is the smallest class that holds n bytes.
func dataClass(n int) int { return bits.Len(uint(max(n, dataSmall)-1) / dataSmall) }

// data returns an empty slice with room for n bytes.
func (p *spares) data(n int) []byte {
	if n > dataLarge {
		return make([]byte, 0, (n+dataLarge-1)/dataLarge*dataLarge)
	}
	free := &p.datas[dataClass(n)]
	i := len(*free) - 1
	if i < 0 {
		return make([]byte, 0, dataSmall<<dataClass(n))
	}
	b := (*free)[i]
	(*free)[i] = nil
	*free = (*free)[:i]
	p.size -= int64(cap(b))
	return b
}

func (p *spares) putData(b []byte) {
	c := cap(b)
	if c == 0 || c > dataLarge {
		return
	}
	if free := &p.datas[dataClass(c)]; p.fits(len(*free), int64(c)) {
		*free = append(*free, b[:0])
		p.size += int64(c)
	}
}
