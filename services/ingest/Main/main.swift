// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQIngestService
import MemQRuntime

ServiceProcess.begin()
exit(await IngestProgram.main(Array(CommandLine.arguments.dropFirst())))
