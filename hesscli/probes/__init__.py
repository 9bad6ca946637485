"""Probes: one function each, operator in, result out. They never print, log or time themselves."""
