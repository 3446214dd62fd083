"""Planning: candidates, the search over them, and the plan that comes out."""
