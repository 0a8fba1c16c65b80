# Selectors that name labels. A revision without any is built without this file.
package sallyport.segments

labels_fit(row, node) if {
	every key, values in row.labels {
		label_fits(node, key, values)
	}
}
