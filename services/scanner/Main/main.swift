// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQScannerService
import MemQRuntime

ServiceProcess.begin()
exit(await ScannerProgram.main(Array(CommandLine.arguments.dropFirst())))
