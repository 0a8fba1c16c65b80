# What is asked of one label, here `the-label`. It is tested as it stands, and built once for each label that a selector
# names (policies/lifecycle/segments_yaml.py): no other label is read, so that nodes which differ in those share their
# decisions.
package sallyport.segments

caller_rows contains row if some row in data.workspace.selectors.by_label["the-label"][input.identity.labels["the-label"]]

target_rows contains row if some row in data.workspace.selectors.by_label["the-label"][input.target.labels["the-label"]]

label_fits(node, "the-label", values) if node.labels["the-label"] in values
