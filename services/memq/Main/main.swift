// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQCommands
import MemQEmbedded
import MemQRuntime

if CommandLine.arguments.dropFirst().first == "serve" { ServiceProcess.begin() }
exit(await MemQTool.main(Array(CommandLine.arguments.dropFirst())) { await MemQServer.main($0) })
