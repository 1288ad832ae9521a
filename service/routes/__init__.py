"""HTTP only: what is asked, of whom, and how the answer is shaped. Schemas lie beside their routes."""
