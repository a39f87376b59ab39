"""Search spaces: genotype to graph, canonical form, sampling, the operations a space can ask for, bulk counts."""
