# How a row (a grant or a deny) is compared with a request. A row that does not name a thing does not limit it;
# whether it must be named is checked when a revision is built (every grant on an `http` route names methods and paths).
package sallyport.matching

# A path is a list of decoded segments and is compared segment by segment, never as text.
#   paths     literal paths
#   patterns  paths with wildcards: `*` is exactly one segment; an `open` pattern (written `/**` at its end) also covers
#             everything below it
path(row) if {
	not row.paths
	not row.patterns
}

path(row) if input.request.path in row.paths

path(row) if {
	some pattern in row.patterns
	fits(pattern)
}

fits(pattern) if {
	count(input.request.path) == count(pattern.segments)
	segments_fit(pattern.segments)
}

fits(pattern) if {
	pattern.open
	count(input.request.path) > count(pattern.segments)
	segments_fit(pattern.segments)
}

segments_fit(segments) if {
	every i, segment in segments {
		segment_fits(segment, input.request.path[i])
	}
}

segment_fits(segment, found) if segment == found

segment_fits("*", found) if found != ""

method(row) if not row.methods

method(row) if verb in row.methods

# What opens a channel (a WebSocket, an exec) is an UPGRADE, whatever method carries it: a grant of GET never covers it.
verb := "UPGRADE" if {
	input.request.upgrade != ""
} else := input.request.method

# What a row that does name sites asks is in matching_sites.rego.
site(row) if not row.sites

tier(row) if not row.tiers

tier(row) if input.identity.tier in row.tiers
