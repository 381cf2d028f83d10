// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQReplicationService
import MemQRuntime

ServiceProcess.begin()
exit(await ReplicationProgram.main(Array(CommandLine.arguments.dropFirst())))
