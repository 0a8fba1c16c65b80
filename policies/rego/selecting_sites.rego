# Selectors that name sites. A revision without any is built without this file: see matching_sites.rego.
package sallyport.segments

caller_rows contains row if some row in data.workspace.selectors.by_site[input.identity.site]

target_rows contains row if some row in data.workspace.selectors.by_site[input.target.site]

site_fits(row, node) if node.site in row.sites
