"""Everything of policy: its content in `rego/`, its engines, and its life from draft to enforced."""
