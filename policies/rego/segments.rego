# Segments: which ones the caller is in, which ones the target of a stream is in, and whether one reaches the other.
# A node is in the segment that its inventory record names (here) and in every segment whose selector it meets
# (selecting.rego, which is built where a segment has a selector). Who is in none reaches nothing.
package sallyport.segments

import data.sallyport.requirements

caller_in(names) if input.identity.segment in names

target_in(names) if input.target.segment in names

# One of the caller's segments reaches one of the target's: of those that the route takes, where it names any.
reached if {
	input.target.segment in data.workspace.segments[input.identity.segment]
	from(input.identity.segment)
	to(input.target.segment)
}

from(_) if not requirements.route.segments

from(segment) if segment in requirements.route.segments

to(_) if not requirements.route.to

to(segment) if segment in requirements.route.to

# For people, asked by `explain` alone: each segment of both ends with what put it there, and the ways between them.
caller[input.identity.segment] := "inventory" if input.identity.segment != ""

target[input.target.segment] := "inventory" if input.target.segment != ""

ways contains {"from": here, "to": there} if {
	some here, _ in caller
	some there, _ in target
	there in data.workspace.segments[here]
	from(here)
	to(there)
}
