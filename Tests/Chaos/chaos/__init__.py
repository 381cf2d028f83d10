# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""Faults in a cluster of real processes, the histories its clients record meanwhile, and the proof that they are right."""
