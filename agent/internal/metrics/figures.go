package metrics

import "github.com/prometheus/client_golang/prometheus"

// A figure is a name with its meaning.
type figure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

var all []*figure

func counter(name, help string, labels ...string) *figure {
	return add(prometheus.CounterValue, name+"_total", help, labels)
}

func gauge(name, help string, labels ...string) *figure {
	return add(prometheus.GaugeValue, name, help, labels)
}

func add(kind prometheus.ValueType, name, help string, labels []string) *figure {
	f := &figure{prometheus.NewDesc("mxshield_"+name, help, labels, nil), kind}
	all = append(all, f)
	return f
}

// Counters of packets are kept in the kernel and outlive the agent; all others begin with it.
var (
	buildInfo     = gauge("build_info", "Version of the agent and of Go, and the node's name; always 1.", "version", "goversion", "node")
	startTime     = gauge("start_time_seconds", "When the agent started, in seconds since 1970.")
	shieldMode    = gauge("shield_mode", "1 for what the shield does: on, off (nothing is dropped until mxshieldctl on), or dry_run.", "mode")
	warnings      = gauge("warnings", "Warnings that mxshieldctl status shows.")
	interfaceInfo = gauge("interface_info", "Shielded interfaces and how the program is attached; always 1.", "interface", "mode")

	packets       = counter("packets", "Packets on the shielded interfaces, by verdict and reason, since the kernel's tables were made.", "verdict", "reason")
	samplesLost   = counter("drop_samples_lost", "Samples of dropped packets for which the agent was too busy (mxshieldctl top).")
	tableEntries  = gauge("kernel_table_entries", "Entries in a table of the kernel.", "table")
	tableCapacity = gauge("kernel_table_capacity_entries", "Entries that fit; an exact table grows before it is full.", "table")

	standing   = gauge("blocks", "Blocks that stand, by cause and address family.", "cause", "family")
	made       = counter("blocks_made", "Blocks that this agent made, by cause.", "cause")
	entries    = gauge("entries", "Entries of the block table by the node that made them, whether they hold or not; without an origin: of all those that are not named.", "origin", "family")
	allows     = gauge("allows", "Allows made by hand that stand.")
	clears     = gauge("clears", "Unblocks whose hold against automatic blocks is not over.")
	unenforced = gauge("unenforced_prefixes", "Prefixes that the kernel did not take.")

	events         = counter("events", "Events read off the logs, by MTA and kind.", "mta", "event")
	sources        = gauge("sources", "Sources that have a score.")
	sessionsEnded  = counter("sessions_ended", "Live sessions of blocked sources that were ended.")
	senders        = gauge("senders", "Allows by name (spf:, domain:).")
	sendersFailing = gauge("senders_failing", "Allows by name that could not be refreshed.")

	inputLines      = counter("input_lines", "Lines read from a log.", "input")
	inputLag        = gauge("input_lag_bytes", "Bytes of a log that are not read yet.", "input")
	inputLagSeconds = gauge("input_lag_seconds", "Age of the newest event read, while there is more to read.", "input")
	inputTruncated  = counter("input_truncated_lines", "Lines that were too long and cut.", "input")
	inputSuppressed = counter("input_suppressed_messages", "Messages that a log says were left out by rate limiting.", "input")
	inputUntrusted  = counter("input_untrusted_messages", "Messages ignored because another user than the MTA's wrote them.", "input")
	inputDropped    = counter("input_dropped_datagrams", "Datagrams that the kernel dropped before they were read.", "input")
	inputFailing    = gauge("input_failing", "1 if the log could not be read at the last try.", "input")

	stateBytes  = gauge("state_bytes", "Size of the state file.")
	stateFailed = gauge("state_write_failed", "1 if the last write of the state file failed.")

	limit = gauge("limit_connections_per_second", "Limit of new connections from one source and in total; 0: none. What is over it is in packets.", "limit")

	dnsQueries       = counter("dns_queries", "DNS queries sent.")
	dnsAsked         = counter("dns_sources_asked", "Sources that the lists or the reverse DNS were asked about.")
	dnsWaiting       = gauge("dns_sources_waiting", "Sources that wait to be asked about.")
	dnsDropped       = counter("dns_sources_dropped", "Sources not asked about because too many waited.")
	resolverUp       = gauge("dns_resolver_up", "1 if a resolver answers.", "resolver")
	resolverFailures = counter("dns_resolver_failures", "Queries that a resolver did not answer, or wrongly.", "resolver")
	resolverSeconds  = gauge("dns_resolver_answer_seconds", "How long a resolver takes to answer, smoothed.", "resolver")
	listAsked        = counter("dns_list_asked", "Sources that a DNS list was asked about.", "zone")
	listListed       = counter("dns_list_listed", "Sources that a DNS list speaks against.", "zone")
	listWelcomed     = counter("dns_list_welcomed", "Sources that a DNS list speaks for.", "zone")
	listErrors       = counter("dns_list_errors", "Answers of a DNS list that were errors or none.", "zone")
	listSkipped      = counter("dns_list_skipped", "Sources that a DNS list was not asked about: rate, budget or suspension.", "zone")
	listLeft         = gauge("dns_list_queries_left", "Queries left of today's budget of a DNS list.", "zone")
	listSeconds      = gauge("dns_list_answer_seconds", "How long a DNS list takes to answer, smoothed.", "zone")
	listSuspended    = gauge("dns_list_suspended", "1 if a DNS list is suspended.", "zone", "family")

	holdActive  = gauge("hold_active", "1 if new sources are asked about before they are accepted.", "family")
	holdBudget  = gauge("hold_budget_connections_per_second", "First connections held per second at most.")
	holdHeld    = counter("hold_connections", "First connections of new sources that were held.")
	holdResults = counter("hold_results", "What became of new sources: listed are blocked, all others are let in; untold were never held.", "result")
	holdKnown   = gauge("hold_known_sources", "Known senders, which are never held.")
	holdSeconds = gauge("hold_answer_seconds", "How long the lists take to answer about a held source, smoothed.")

	ownAddresses = gauge("own_addresses", "Own addresses that are watched on the DNS lists.")
	ownListed    = gauge("own_addresses_listed", "Own addresses that are on at least one list.")
	ownListings  = gauge("own_listings", "Own addresses that a list lists.", "zone")

	publishQueries = counter("publish_queries", "Questions to the block table as a DNS list.")
	publishListed  = counter("publish_listed", "Answers of it that list an address.")
	publishRefused = counter("publish_refused", "Questions of others than its clients.")

	members          = gauge("cluster_members", "Other members of the cluster, and configured peers that nobody answers for, by state.", "state")
	clusterLearned   = gauge("cluster_learned_entries", "Entries learned from other members.")
	clusterLag       = gauge("cluster_lag_entries", "Entries that other members have and this one does not, as far as it knows.")
	clusterSuspended = gauge("cluster_suspended_members", "Members of which nothing is enforced here.")
	clusterOffset    = gauge("cluster_clock_offset_seconds", "How far this node's clock is ahead of the median of the others'.")

	// By their names in mxshieldctl peers.
	clusterCounters = map[string]*figure{
		"packets":            counter("cluster_packets", "Gossip packets received."),
		"streams":            counter("cluster_streams", "Gossip connections accepted."),
		"sent_packets":       counter("cluster_sent_packets", "Gossip packets sent."),
		"sent_messages":      counter("cluster_sent_messages", "Messages sent in gossip packets."),
		"sent_streams":       counter("cluster_sent_streams", "Batches of messages sent over connections."),
		"refused":            counter("cluster_refused", "Packets and connections that no key of the cluster opens."),
		"malformed":          counter("cluster_malformed", "Packets and connections that do not follow the protocol."),
		"busy":               counter("cluster_busy", "Connections refused because too many were open."),
		"stranger":           counter("cluster_strangers", "Packets and connections of addresses that are no member's."),
		"inbox_full":         counter("cluster_inbox_full", "Messages dropped because this node was too busy."),
		"queue_full":         counter("cluster_queue_full", "Messages dropped because too much waited for a member."),
		"unsent":             counter("cluster_unsent", "Messages that could not be sent."),
		"send_errors":        counter("cluster_send_errors", "Errors of sending."),
		"entries_merged":     counter("cluster_entries_merged", "Entries of other members taken in."),
		"entries_early":      counter("cluster_entries_early", "Of these, those with stamps ahead of this node's clock."),
		"entries_refused":    counter("cluster_entries_refused", "Entries of other members that were refused."),
		"bursts_cut":         counter("cluster_bursts_cut", "Parts of bursts that were left to be pulled."),
		"unknown_version":    counter("cluster_unknown_version", "Messages of a version that this agent does not know."),
		"unknown_kind":       counter("cluster_unknown_kind", "Messages of a kind that this agent does not know."),
		"unknown_records":    counter("cluster_unknown_records", "Records of a kind that this agent does not know."),
		"messages_malformed": counter("cluster_messages_malformed", "Messages that could not be read."),
		"pulls":              counter("cluster_pulls", "Requests for entries that were missed."),
		"pull_timeouts":      counter("cluster_pull_timeouts", "Requests that were not answered in time."),
		"conflicts":          counter("cluster_conflicts", "Times that another machine spoke in this node's name."),
		"suspensions":        counter("cluster_suspensions", "Members suspended because they would have blocked known senders."),
		"evidence_dropped":   counter("cluster_evidence_dropped", "Evidence of sources that was not sent or not kept."),
	}
)
