// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQUploaderService
import MemQRuntime

ServiceProcess.begin()
exit(await UploaderProgram.main(Array(CommandLine.arguments.dropFirst())))
