package expvarom

// Upper bounds of histogram buckets. Seconds, but for Size (bytes) and Small (a count).
var (
	// Fast is for what a server does by itself: commands, disk operations, password checks.
	Fast = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5}
	// Net is for what waits on others: deliveries, lookups, hooks, acceptance.
	Net = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120}
	// Long is for sessions and times in the queue.
	Long = []float64{1, 5, 15, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 48 * 3600}
	// Size is for messages, 1 KiB to 50 MiB.
	Size = []float64{1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 5 << 20, 20 << 20, 50 << 20}
	// Small is for counts of recipients and attempts.
	Small = []float64{1, 2, 3, 5, 10, 20, 50, 100}
)
