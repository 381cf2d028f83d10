// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import ArgumentParser

MemQSim.main()
