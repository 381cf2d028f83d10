// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQRebalancerService
import MemQRuntime

ServiceProcess.begin()
exit(await RebalancerProgram.main(Array(CommandLine.arguments.dropFirst())))
