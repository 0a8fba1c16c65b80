# Segments by selector. A revision in which no segment has a selector is built without this file
# (policies/lifecycle/workspace.py). A selector selects nodes alone, and all that it names must hold.
# Its row stands under one of its conditions in `data.workspace.selectors`, so that what is looked at is indexed by what
# the node is, and holds what is left to ask. Labels and sites are in selecting_labels.rego and selecting_sites.rego.
package sallyport.segments

caller_in(names) if {
	some row in callers
	row.segment in names
}

target_in(names) if {
	some row in targets
	row.segment in names
}

reached if {
	some here, reaches in reaching
	from(here)
	some there in reaches
	there in reachable
	to(there)
}

reaching[input.identity.segment] := data.workspace.segments[input.identity.segment]

reaching[row.segment] := row.reaches if some row in callers

reachable contains input.target.segment

reachable contains row.segment if some row in targets

# The rows of the selectors that the caller meets, and the target.
callers contains row if {
	input.identity.kind == "node"
	some row in caller_rows
	fits(row, input.identity)
}

targets contains row if {
	some row in target_rows
	fits(row, input.target)
}

caller_rows contains row if some row in data.workspace.selectors.by_tier[input.identity.tier]

caller_rows contains row if some row in data.workspace.selectors.by_region[input.identity.region]

target_rows contains row if some row in data.workspace.selectors.by_tier[input.target.tier]

target_rows contains row if some row in data.workspace.selectors.by_region[input.target.region]

fits(row, node) if {
	labels_fit(row, node)
	site_fits(row, node)
	region_fits(row, node)
	tier_fits(row, node)
}

labels_fit(row, _) if not row.labels

site_fits(row, _) if not row.sites

region_fits(row, _) if not row.regions

region_fits(row, node) if node.region in row.regions

tier_fits(row, _) if not row.tiers

tier_fits(row, node) if node.tier in row.tiers

# For people. Where the inventory says the same, that is what is told.
caller[row.segment] := data.workspace.selectors.of[row.segment] if {
	some row in callers
	row.segment != input.identity.segment
}

target[row.segment] := data.workspace.selectors.of[row.segment] if {
	some row in targets
	row.segment != input.target.segment
}
