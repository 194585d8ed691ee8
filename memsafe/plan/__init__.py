"""MemoryPlan, the tiers, and the analytic memory model."""
